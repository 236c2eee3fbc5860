-- Remember what could not be done for one thing.
select stats_pipeline.put_aside(%(what)s::text, %(key)s::text, %(reason)s::text, %(state)s::text);
