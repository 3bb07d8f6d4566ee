"""The page on which a trained run draws and answers."""
