# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""Shim: pyproject.toml is the truth."""

import setuptools

setuptools.setup()
