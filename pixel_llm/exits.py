# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Exit codes of `pixel-llm`, so that launchers know what to do next."""

DONE = 0
# Bad input, or a failure; of this process or of another of its cluster.
FAILED = 1
USAGE = 2  # argparse's
# Stopped by a signal with everything saved: the same command goes on (sysexits'
# "try again").
PREEMPTED = 75
# Nothing went on for `loop.stall_seconds`: the same command goes on from the
# last checkpoint.
STALLED = 76
INTERRUPTED = 130
