-- Remember that a file was applied, in the transaction that applied it.
insert into stats_pipeline.migration (kind, name, checksum)
values (%(kind)s, %(name)s, %(checksum)s)
on conflict (kind, name) do update set checksum = excluded.checksum, applied_at = now();
