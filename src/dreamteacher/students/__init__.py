"""The student: any timm backbone with a pyramid, its neck, and the heads that regress the features of a teacher."""
