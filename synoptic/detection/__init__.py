"""Finding what words name in pictures: prompts in, boxes with names out."""
