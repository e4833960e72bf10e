// Plays the stories of ../go/stories.go with the real @amplitude/analytics-node, one per line read from stdin, and
// answers each with one line of JSON: how many calls the SDK settled, by the code it told its caller.
//
// usage: node drive.js SERVER_URL API_KEY PREFIX
'use strict';

const readline = require('node:readline');
const amplitude = require('@amplitude/analytics-node');

const [serverUrl, apiKey, prefix] = process.argv.slice(2);
const id = (name) => `${prefix}-${name}`;

let calls = [];
const call = (answer) => calls.push(answer.promise);
const identify = (build, who) => {
  const operations = new amplitude.Identify();
  build(operations);
  call(amplitude.identify(operations, who));
};

const steps = (from, to) => {
  for (let n = from; n <= to; n++) {
    call(amplitude.track('Step', { n }, { user_id: id('bob'), device_id: id('device-2') }));
  }
};

const stories = {
  login() {
    const anonymous = { device_id: id('device-1') };
    const ada = { user_id: id('ada'), device_id: id('device-1') };
    identify((o) => o.set('campaign', 'spring'), anonymous);
    call(amplitude.track('App Opened', { screen: 'home' }, anonymous));
    identify((o) => o
      .set('email', id('ada@example.com')).set('plan', 'pro').set('trial', true)
      .setOnce('first_seen', '2026-01-01')
      .add('logins', 1)
      .append('visited', 'home').prepend('recent', 'a').postInsert('tags', 'x').preInsert('badges', 'gold'), ada);
    call(amplitude.track('Order Completed', { total: 19.5, currency: 'EUR', secret: 'not chosen' }, ada));
    identify((o) => o
      .set('plan', 'team')
      .setOnce('first_seen', '2026-02-02')
      .add('logins', 2)
      .append('visited', 'cart').prepend('recent', 'b').postInsert('tags', 'x').preInsert('badges', 'silver'), ada);
    identify((o) => o.remove('visited', 'home').unset('trial'), ada);
    call(amplitude.track('Order Completed', { total: 7 }, { device_id: id('device-1') }));
    call(amplitude.track('Not Selected', { total: 1 }, ada));
    call(amplitude.revenue(new amplitude.Revenue().setProductId('sku-1').setPrice(4.99).setQuantity(3), ada));
    call(amplitude.setGroup('org', ['Acme', 'Globex'], ada));
    call(amplitude.groupIdentify('org', 'Acme', new amplitude.Identify().set('seats', 5)));
    steps(1, 30);
    amplitude.flush();
  },
  restart() { steps(31, 60); },
  full() { steps(61, 90); },
};

async function main() {
  await amplitude.init(apiKey, {
    serverUrl, flushIntervalMillis: 200, logLevel: amplitude.Types.LogLevel.None,
  }).promise;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    calls = [];
    stories[line]();
    const codes = {};
    for (const result of await Promise.all(calls)) {
      codes[result.code] = (codes[result.code] ?? 0) + 1;
    }
    console.log(JSON.stringify({ story: line, calls: calls.length, codes }));
  }
}

main();
