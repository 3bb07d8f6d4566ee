"""What every verb stands on: configuration, composition, the run folder, hardware, ranks, the terminal."""
