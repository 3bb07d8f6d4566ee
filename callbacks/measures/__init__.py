"""The measures, one file each: they generate records and score them. `registry` lists all of them."""
