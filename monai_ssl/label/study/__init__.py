# SPDX-License-Identifier: Apache-2.0
"""Simulated annotation: how good a model gets with so many labels, by who chose them."""
