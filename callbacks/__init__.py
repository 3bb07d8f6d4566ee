"""Lightning callbacks that watch a run, and the tracker they log to."""
