"""Read predictions with DuckDB: they are plain Parquet at the root of a `tubelet label --out` folder.

    python examples/read_predictions.py PREDICTIONS

Names that begin with `_` hold what readers do not need; the pattern below leaves them out. For `s3://`, run
`INSTALL httpfs; LOAD httpfs; CREATE SECRET (TYPE s3, PROVIDER credential_chain)` first.
"""

from __future__ import annotations

import sys

import duckdb

BY_LABEL = """
  SELECT label, count(*) AS videos, round(avg(score), 3) AS mean_score
  FROM rows WHERE status = 'ok' GROUP BY label ORDER BY videos DESC, label
"""
UNSURE = """
  SELECT uri, label, round(score, 3) AS score, topk_labels[2] AS second
  FROM rows WHERE status = 'ok' ORDER BY score LIMIT 5
"""
FAILED = """
  SELECT error_code, count(*) AS videos, any_value(uri) AS for_example
  FROM rows WHERE status = 'error' GROUP BY error_code ORDER BY videos DESC
"""


def main(predictions: str) -> None:
    """Print videos by label, the least certain ones, and the reasons of failures."""
    connection = duckdb.connect()
    rows = connection.read_parquet(f"{predictions.rstrip('/')}/*.parquet")
    connection.register("rows", rows)
    for title, query in (("by label", BY_LABEL), ("least certain", UNSURE), ("failed", FAILED)):
        print(f"\n{title}")
        print(connection.sql(query))


if __name__ == "__main__":
    main(sys.argv[1])
