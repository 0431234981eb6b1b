"""`python -m service`."""

import os

# ONNX Runtime reports its use to its makers unless told not to before it is loaded. The photos' owners were not asked.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from service.cli import main

if __name__ == "__main__":
    main()
