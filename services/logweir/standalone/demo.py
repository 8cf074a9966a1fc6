"""The manifest that a first start of `up` begins with."""

from __future__ import annotations

from typing import Final

MANIFEST: Final = """\
# The tenant and the pipeline that a first start begins with. A changed file is applied at once;
# 'logweir apply -f FILE' does the same for files elsewhere.
apiVersion: logweir.dev/v1alpha1
kind: LogTenant
metadata:
  name: demo
spec:
  tenantId: demo
  retention:
    days: 30
  apiKeys:
    - name: ingest
      scopes: [ingest]
    - name: query
      scopes: [query]
---
apiVersion: logweir.dev/v1alpha1
kind: LogPipeline
metadata:
  name: default
spec:
  tenantRef:
    name: demo
"""
