"""Charts as SVG: lines over steps, histograms, bars and radar charts, for reports, data cards and result tables."""
