-- Whether pgmq is there, as an extension or as plain SQL.
select to_regprocedure('pgmq.create(text)') is not null as installed;
