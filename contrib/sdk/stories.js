// The stories of go/stories.go, as the SDKs for Node and for browsers tell them: both have one interface. Each
// gives the promises of its calls; an SDK settles one when it is delivered or given up.
'use strict';

// oneUser: the SDK knows one user at a time, as a browser's does.
function stories(amplitude, prefix, oneUser, wrongKeyInstance) {
  const id = (name) => `${prefix}-${name}`;
  let calls = [];
  const call = (answer) => calls.push(answer.promise);
  const identify = (build, who) => {
    const operations = new amplitude.Identify();
    build(operations);
    call(amplitude.identify(operations, who));
  };
  const bob = { user_id: id('bob'), device_id: id('device-2') };
  const steps = (from, to, more) => {
    for (let n = from; n <= to; n++) {
      call(amplitude.track('Step', { n, ...more }, bob));
    }
  };

  const tell = {
    async login() {
      const anonymous = { device_id: id('device-1') };
      const ada = { user_id: id('ada'), device_id: id('device-1') };
      identify((o) => o.set('campaign', 'spring'), anonymous);
      call(amplitude.track('App Opened', { screen: 'home' }, anonymous));
      if (oneUser) {
        await Promise.all(calls); // else they would become those of who logs in next
      }
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
    },
    restart() { steps(31, 60); },
    full() { steps(61, 90); },
    // One event of a hundred has a time that is none.
    bad() {
      steps(91, 140);
      call(amplitude.track('Bad', {}, { ...bob, time: -1 }));
      steps(141, 189);
    },
    // Together more than the megabyte that one request may have; half of them are less. (Of a half that is too large again
    // the SDK for Node lets later events go before: it keeps no order then.)
    large() { steps(190, 249, { padding: 'x'.repeat(20000) }); },
    async wrong() {
      const other = await wrongKeyInstance();
      for (let i = 0; i < 3; i++) {
        call(other.track('Step', {}, bob));
      }
    },
    // Of browsers only: the page is left before anything is sent; its tab is closed while that is under way; or it speaks HTTPS.
    leave() { steps(250, 259); },
    close() {
      identify((o) => o.set('plan', 'closed'), bob);
      steps(260, 269);
    },
    secure() { steps(270, 299, { padding: 'compressed '.repeat(100) }); },
  };

  return async (story) => {
    calls = [];
    await tell[story]();
    return calls;
  };
}

// count says how the calls of a story ended, by the code that the SDK told its caller.
async function count(calls) {
  const codes = {};
  for (const result of await Promise.all(calls)) {
    codes[result.code] = (codes[result.code] ?? 0) + 1;
  }
  return { calls: calls.length, codes };
}

if (typeof module !== 'undefined') {
  module.exports = { stories, count };
}
