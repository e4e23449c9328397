"""What a notebook shows and asks: figures, drawings, scorecard, course, explorer. Imports no study and no page."""
