# Triton with the packages of the model NAME-pictures, which decodes and prepares pictures on the server (publish.pictures); boto3 is for
# storing a sample of them in S3 (docs/serving.md, Sampling served pictures for retraining).
FROM nvcr.io/nvidia/tritonserver:26.11-py3
RUN pip install --no-cache-dir "numpy>=2,<3" "pillow>=11.3" boto3
