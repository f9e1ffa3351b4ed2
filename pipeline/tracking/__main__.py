"""`python -m pipeline.tracking`: the recorder of pipeline/tracking/recorder.py, which starts it."""

from pipeline.tracking.recorder import serve

serve()
