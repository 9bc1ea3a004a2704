"""Reports of runs from their result files: metrics and curves as tables, plots and an HTML page."""
