"""Search: strategies propose, the measurer measures, the log keeps."""
