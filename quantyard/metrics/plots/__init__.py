"""The layout of every plot in pixels; the page writes it as SVG, the report as pictures."""
