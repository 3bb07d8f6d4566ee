"""What is measured, one file a measure: generate records, score them. `registry` lists all of them."""
