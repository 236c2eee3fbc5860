-- What became of one call to the app.
select stats_pipeline.record_delivery(
    %(route)s::text, %(asked)s::bigint[], %(taken)s::text[], %(problem)s::text, %(deadline)s::integer);
