"""The server that one writes first: FastAPI around a pipeline of transformers, one process, as tutorials have it.

python naive_server.py MODEL PORT
"""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

pipe = pipeline("text-classification", model=sys.argv[1])
app = FastAPI()


class Body(BaseModel):
    """A text."""

    inputs: str


@app.post("/predict")
def predict(body: Body) -> list[dict[str, object]]:
    """Its label."""
    return pipe(body.inputs)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
