"""The student: any timm backbone with a pyramid, its neck, and the heads that regress the teacher's features."""
