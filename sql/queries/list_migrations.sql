-- What has been applied of one kind: migrations, functions or stats.
select name, checksum
from stats_pipeline.migration
where kind = %(kind)s;
