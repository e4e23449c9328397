"""From notebooks to figures, pages, book and decks: what make runs. Builds on `teach`."""
