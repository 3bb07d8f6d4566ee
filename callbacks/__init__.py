"""What watches a run: Lightning callbacks, and the tracker that they log to."""
