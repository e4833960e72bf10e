// Plays the stories with the real @amplitude/analytics-browser in a headless Chromium, one per line read from stdin, and
// answers each with one line of JSON, as ../node/drive.js does. The page comes from a server of its own, so every
// request to the daemon is one of another origin, and the browser asks before (CORS). Chromium is driven over a pipe
// (Chrome DevTools Protocol), without a library.
//
// What this SDK itself drops: after five tries of a request (refused, cut or 5xx, about 8 s) its events, but they stay
// in localStorage and go out with the next page; what a beacon loses, since nobody reads its answer.
//
// usage: node drive.js SERVER_URL API_KEY PREFIX CHROMIUM FOLDER
'use strict';

const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const readline = require('node:readline');
const { spawn } = require('node:child_process');

const [serverUrl, apiKey, prefix, chromium, folder] = process.argv.slice(2);

const page = `<!doctype html><meta charset="utf-8"><title>check</title>
<script src="/sdk.js"></script><script src="/stories.js"></script>
<script>
const settings = (serverUrl) => ({
  serverUrl, flushIntervalMillis: 200, flushQueueSize: 100, autocapture: false, fetchRemoteConfig: false,
  enableDiagnostics: false, logLevel: 0, enableRequestBodyCompression: true,
});
let play;
async function begin(serverUrl, userId, more) {
  await amplitude.init(${JSON.stringify(apiKey)}, userId, { ...settings(serverUrl), ...more }).promise;
  play = stories(amplitude, ${JSON.stringify(prefix)}, true, async () => {
    const other = amplitude.createInstance();
    await other.init('f'.repeat(32), { ...settings(serverUrl), instanceName: 'other' }).promise;
    return other;
  });
}
// As Amplitude's documentation says, for pages that are left.
addEventListener('pagehide', () => { amplitude.setTransport('beacon'); amplitude.flush(); });
</script>`;

function serve() {
  const files = {
    '/': ['text/html', page],
    '/sdk.js': ['text/javascript', fs.readFileSync(path.join(__dirname, 'node_modules/@amplitude/analytics-browser/lib/scripts/amplitude-min.js'))],
    '/stories.js': ['text/javascript', fs.readFileSync(path.join(__dirname, 'stories.js'))],
    '/elsewhere': ['text/html', 'another page'],
  };
  const server = http.createServer((request, response) => {
    const [type, body] = files[request.url] ?? [];
    response.writeHead(type ? 200 : 404, { 'Content-Type': type ?? 'text/plain', 'Cache-Control': 'no-store' });
    response.end(body);
  });
  return new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(`http://127.0.0.1:${server.address().port}`)));
}

// launch starts Chromium; the result sends it a command and gives the answer.
function launch() {
  const browser = spawn(chromium, [
    '--headless', '--remote-debugging-pipe', '--no-sandbox', `--user-data-dir=${folder}`, '--ignore-certificate-errors',
    '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', 'about:blank',
  ], { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
  const waiting = new Map();
  const listeners = new Set();
  const end = (why) => { console.error(`Chromium has ended: ${why}`); process.exit(1); };
  browser.on('error', (error) => end(error.message));
  browser.on('exit', (code, signal) => end(signal ?? code));
  let rest = '';
  browser.stdio[4].setEncoding('utf8').on('data', (text) => {
    const messages = (rest + text).split('\0');
    rest = messages.pop();
    for (const message of messages.map((m) => JSON.parse(m))) {
      if (message.id === undefined) {
        listeners.forEach((f) => f(message));
        continue;
      }
      const { resolve, reject } = waiting.get(message.id);
      waiting.delete(message.id);
      message.error ? reject(new Error(message.error.message)) : resolve(message.result);
    }
  });
  let last = 0;
  const send = (method, params = {}, sessionId) => new Promise((resolve, reject) => {
    waiting.set(++last, { resolve, reject });
    browser.stdio[3].write(JSON.stringify({ id: last, method, params, sessionId }) + '\0');
  });
  const once = (method, which = () => true) => new Promise((resolve) => {
    const f = (message) => { if (message.method === method && which(message.params)) { listeners.delete(f); resolve(message.params); } };
    listeners.add(f);
  });
  return { send, once };
}

async function main() {
  const site = await serve();
  const { send, once } = launch();
  let targetId, sessionId;
  const tab = (method, params) => send(method, params, sessionId);
  const newTab = async () => {
    ({ targetId } = await send('Target.createTarget', { url: 'about:blank' }));
    ({ sessionId } = await send('Target.attachToTarget', { targetId, flatten: true }));
    await tab('Page.enable');
    await tab('Network.enable');
  };
  await newTab();
  const visit = async (url) => {
    const loaded = once('Page.loadEventFired');
    await tab('Page.navigate', { url });
    await loaded;
  };
  const evaluate = async (expression) => {
    const { result, exceptionDetails } = await tab('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) {
      throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    }
    return result.value;
  };
  const open = async (url, ...more) => {
    await visit(`${site}/`);
    await evaluate(`begin(${[url, ...more].map((x) => JSON.stringify(x)).join()})`);
  };
  // A tab that counts page views, and is closed while nobody has answered its first request yet.
  const closeInFlight = async () => {
    await visit(`${site}/elsewhere`);
    const sent = once('Network.requestWillBeSent', ({ request }) => request.method === 'POST' && request.url === serverUrl);
    const autocapture = { pageViews: true, attribution: false, sessions: false, formInteractions: false, fileDownloads: false };
    await open(serverUrl, `${prefix}-bob`, { deviceId: `${prefix}-device-2`, autocapture });
    const calls = 1 + await evaluate("play('close').then((calls) => calls.length)"); // the page view is the SDK's own
    await sent;
    await send('Target.closeTarget', { targetId });
    await newTab();
    await open(serverUrl); // it sends what the other tab left in localStorage; the daemon knows what it has
    return { calls, codes: { closed: calls } };
  };

  await open(serverUrl);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [story, url] = line.split(' ');
    if (url) {
      await open(url);
    }
    let told;
    if (story === 'leave') {
      const calls = await evaluate("play('leave').then((calls) => calls.length)");
      await visit(`${site}/elsewhere`);
      told = { calls, codes: { beacon: calls } };
      await open(serverUrl); // what the beacon has sent is in localStorage still, and is sent again: the daemon knows it
    } else if (story === 'close') {
      told = await closeInFlight();
    } else {
      told = await evaluate(`play(${JSON.stringify(story)}).then(count)`);
    }
    console.log(JSON.stringify({ story, ...told }));
  }
  process.exit(0);
}

main().catch((error) => { console.error(error); process.exit(1); });
