"""Downstream tasks, one file each: head, crops, loss, decoding, score and drawing."""
