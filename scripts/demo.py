"""The end of `make demo`: predictions of a local Triton for validation pictures, the table of results, and paths of all outputs."""

import csv
from itertools import islice
from pathlib import Path

from dreamteacher.cli import escape_unprintable
from dreamteacher.report.summary import markdown
from dreamteacher.report.verdict import comparison
from dreamteacher.serving.predict import predict
from dreamteacher.serving.triton_server import running_triton
from dreamteacher.settings.file import load_params
from dreamteacher.stages.report import read_run

ANSWERS = Path("plots/predict")
PLACES = {
    "data set, with its manifest": "artifacts/data",
    "teacher (a diffusers pipeline)": "artifacts/teachers/own",
    "pretrained backbone (timm)": "artifacts/backbones/features",
    "fine-tuned models": "artifacts/finetuned",
    "report": "artifacts/report/report.html",
    "figures": "metrics/evaluate.json",
    "plots and overlays": "plots/evaluate",
    "ONNX": "artifacts/onnx",
    "Triton repositories": "artifacts/triton",
    "answers of the served model": str(ANSWERS),
    "all runs": "mlflow.db (`mlflow ui --backend-store-uri sqlite:///mlflow.db`)",
}


def main() -> None:
    """Serve the model, predict, and print the results."""
    escape_unprintable()
    params = load_params()
    source = Path(params.ingest.source)
    with Path("artifacts/data/manifest.csv").open(newline="") as file:
        found = (source / row["path"] for row in csv.DictReader(file) if row["split"] == "val")
        pictures = list(islice(filter(Path.exists, found), 3))
    with running_triton(Path("artifacts/triton/local")) as triton:
        print(f"\nTriton serves {', '.join(triton.models)}; it says of {len(pictures)} validation pictures:")
        predict(pictures, triton.http_url, params.publish.name, ANSWERS)
        predict(pictures, triton.grpc_url, params.publish.name, ANSWERS, protocol="grpc", features=True)
    compared = comparison(read_run(params, Path("artifacts")))
    print("\nOn the validation split, over the seeds of labels and initialisation:\n")
    print(markdown([compared["table"].head, *compared["table"].rows]))
    print("", f"{compared['headline']}.", *compared["explained"], sep="\n")
    print("\nWhere everything lies:")
    for what, place in PLACES.items():
        print(f"  {what:32} {place}")


if __name__ == "__main__":
    main()
