"""`python -m pipeline.serving DESCRIPTOR`: the engine's process of pipeline/serving/engines.py, which starts it."""

from pipeline.process import importing

with importing():
    from pipeline.serving.worker import main

main()
