-- What has been applied of one kind: migrations, functions or stats. An older ledger does not know what was made.
select m.name, m.checksum, to_jsonb(m) -> 'made' as made
from stats_pipeline.migration as m
where m.kind = %(kind)s;
