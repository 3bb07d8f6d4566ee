"""What all verbs share: configuration, composition, the run folder, hardware, ranks, the terminal."""
