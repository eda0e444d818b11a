"""What is imported once, for all worker processes of a test run (see warm_workers.py)."""

from __future__ import annotations

from moeprof.capture.devices.process import set_up_process

set_up_process(threads=1)

import pandas  # noqa: E402, F401
import psutil  # noqa: E402, F401
import pyarrow.parquet  # noqa: E402, F401
import torch.profiler  # noqa: E402, F401
import transformers.models.qwen3.modeling_qwen3  # noqa: E402
import transformers.models.qwen3_moe.modeling_qwen3_moe  # noqa: E402, F401

import moeprof.capture.engines.hf  # noqa: E402
import moeprof.capture.measure.breakdown  # noqa: E402
import moeprof.capture.measure.overhead  # noqa: E402
import moeprof.capture.measure.quality  # noqa: E402
import moeprof.capture.measure.teacher_forced  # noqa: E402
import moeprof.capture.worker.lanes  # noqa: E402
import moeprof.capture.worker.session  # noqa: E402
import moeprof.capture.worker.solo  # noqa: E402, F401
import tests.helpers.warm_workers  # noqa: E402, F401
