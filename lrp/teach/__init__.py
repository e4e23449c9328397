"""What a notebook shows and asks: figures, drawings, scorecard, course, explorer. Knows no study and no page."""
