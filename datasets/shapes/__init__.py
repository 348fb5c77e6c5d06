"""Small drawings of coloured shapes with English captions."""
