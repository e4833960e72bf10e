// Plays the stories with the real @amplitude/analytics-node, one per line read from stdin, and answers each with one line
// of JSON: how many calls the SDK settled, by the code it told its caller.
//
// What this SDK itself drops: events of a connection that is refused or cut, at once and for good. So a daemon that
// restarts needs somebody who holds the socket: systemd, or a proxy that waits.
//
// usage: node drive.js SERVER_URL API_KEY PREFIX
'use strict';

const path = require('node:path');
const readline = require('node:readline');
const amplitude = require('@amplitude/analytics-node');
const { stories, count } = require(path.join(__dirname, 'stories.js'));

const [serverUrl, apiKey, prefix] = process.argv.slice(2);
const settings = { serverUrl, flushIntervalMillis: 200, logLevel: amplitude.Types.LogLevel.None };

async function main() {
  await amplitude.init(apiKey, settings).promise;
  const play = stories(amplitude, prefix, false, async () => {
    const other = amplitude.createInstance();
    await other.init('f'.repeat(32), settings).promise;
    return other;
  });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [story] = line.split(' ');
    const calls = await play(story);
    if (story === 'login') {
      amplitude.flush();
    }
    console.log(JSON.stringify({ story, ...await count(calls) }));
  }
}

main();
