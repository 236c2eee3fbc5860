-- The applied files of one kind: migrations, functions or stats. An older ledger does not record what they created.
select m.name, m.checksum, to_jsonb(m) -> 'made' as made
from stats_pipeline.migration as m
where m.kind = %(kind)s;
