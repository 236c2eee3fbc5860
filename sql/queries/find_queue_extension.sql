-- Which functions of pgmq that we call are not there; as an extension or as plain SQL, it has them all.
select array(
    select f.signature
    from unnest(array[
        'pgmq.create(text)', 'pgmq.send(text,jsonb,integer)', 'pgmq.archive(text,bigint[])',
        'pgmq.set_vt(text,bigint,integer)'
    ]) as f (signature)
    where to_regprocedure(f.signature) is null
) as missing;
