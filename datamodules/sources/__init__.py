"""Turn corpora into shards: COCO, image folders, LLaVA-style conversations, Hugging Face data sets."""
