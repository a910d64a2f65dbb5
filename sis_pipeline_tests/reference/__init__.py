"""The merge of a district's year once more, by the rules as they are written and without a thought for speed: dicts and
loops that a registrar who reads code can follow from top to bottom. What it finds is compared with `merge_district` row
for row; no Polars, and nothing that the product computes, is used to find it."""
