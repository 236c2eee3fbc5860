-- Record that a file was applied, in the transaction that applied it.
insert into stats_pipeline.migration (kind, name, checksum, made)
values (%(kind)s, %(name)s, %(checksum)s, %(made)s)
on conflict (kind, name) do update set checksum = excluded.checksum, made = excluded.made, applied_at = now();
