"""Networks: tensors in, tensors out; they know nothing of files, devices or processes."""
