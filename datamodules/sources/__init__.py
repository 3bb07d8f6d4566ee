"""Corpora in: COCO, image folders, LLaVA-style conversations, Hugging Face data sets."""
