"""Files of a checkpoint folder in the Hugging Face layout, beside its weights; named without torch."""

# A part that a loader would replace by an empty or default one if it were lost: any one of these sets will do.
TOKENIZER = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))
PROCESSOR = (("processor_config.json",), ("preprocessor_config.json",))
SCHEDULER = (("scheduler_config.json",),)
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # of a published pipeline; we never load them
