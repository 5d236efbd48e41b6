"""The tables of fields in docs/api.md, generated from the models (`make api-table`)."""
