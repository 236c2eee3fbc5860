// What the app does, as its pages and routes do it: enqueue after a match, by the button, by cron; list; retry.
// Run by test_app_calls.py: `node app_calls.mjs URL HEADERS`; prints what the app would show, as JSON.

const [base, access] = process.argv.slice(2);
process.env.NEXT_PUBLIC_APP_URL = base;

// A browser resolves a relative address against its page and sends its session. A server of the app's shows the key.
const plainFetch = globalThis.fetch;
const fetch = (address, options = {}) =>
  plainFetch(new URL(address, base), {
    ...options,
    headers: { ...options.headers, ...JSON.parse(access) },
  });

const toasts = [];
const showToast = (message, type) => toasts.push({ message, type });
const warnings = [];
console.warn = (...parts) => warnings.push(parts.join(" "));

// After a match: not awaited by the page, only by this script.
const matchData = { id: 123 };
await fetch('/api/admin/enqueue-stats-job', {
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify({
    triggeredBy: 'post-match',
    matchId: matchData?.id,
    requestId: crypto.randomUUID()
  })
}).catch(err => console.warn('Stats job enqueue failed:', err));

// The admin's button.
const response = await fetch('/api/admin/enqueue-stats-job', {
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify({
    triggeredBy: 'admin',
    requestId: crypto.randomUUID(),
    userId: 'admin'
  })
});
const pressed = { ok: response.ok, ...(await response.json()) };

// The app's own cron route, which forwards.
async function GET() {
  const jobPayload = {
    triggeredBy: 'cron',
    requestId: crypto.randomUUID(),
    timestamp: new Date().toISOString()
  };
  return fetch(`${process.env.NEXT_PUBLIC_APP_URL}/api/admin/enqueue-stats-job`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(jobPayload)
  });
}
const forwarded = await GET();
const cron = { ok: forwarded.ok, ...(await forwarded.json()) };

// The status section.
const calculateDuration = (startedAt, completedAt) => {
  if (!startedAt) return 'N/A';
  if (!completedAt) return 'In progress...';
  const start = new Date(startedAt);
  const end = new Date(completedAt);
  const durationMs = end.getTime() - start.getTime();
  const durationSeconds = Math.round(durationMs / 1000);
  return `${durationSeconds}s`;
};

let jobStatusData = [];
const fetchJobStatus = async () => {
  const answer = await fetch('/api/admin/background-jobs?limit=10');
  jobStatusData = await answer.json();
};

const handleRetryJob = async (jobId) => {
  try {
    const response = await fetch('/api/admin/enqueue-stats-job', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({
        triggeredBy: 'admin',
        requestId: crypto.randomUUID(),
        userId: 'admin',
        retryOf: jobId
      })
    });
    if (!response.ok) throw new Error('Failed to retry job');
    await fetchJobStatus();
    showToast('Job retry queued successfully', 'success');
  } catch (err) {
    showToast(`Failed to retry job: ${err.message}`, 'error');
  }
};

await fetchJobStatus();
const failed = jobStatusData.find((job) => job.status === 'failed');
await handleRetryJob(failed.id);
await handleRetryJob(pressed.jobId); // it has not failed

const table = jobStatusData.map((job) => ({
  id: job.id,
  trigger: job.job_payload.triggeredBy + (job.job_payload.matchId ? ` (Match ${job.job_payload.matchId})` : ''),
  status: job.status,
  started: job.started_at ? new Date(job.started_at).toISOString() : 'N/A',
  duration: calculateDuration(job.started_at, job.completed_at),
  retry: job.status === 'failed',
}));
console.log(JSON.stringify({ pressed, cron, failed: failed.id, table, toasts, warnings }));
