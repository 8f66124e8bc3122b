# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m pixel_llm VERB`."""

import sys

from pixel_llm.main import main

sys.exit(main())
