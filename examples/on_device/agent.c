/* An agent that acts and learns in a world of its own: a corridor with a sign at its beginning, and a fork at its end.
 *
 *     python -m examples.on_device.agent --export build
 *     cc -O2 -std=c99 -Wall -Werror -Ibuild examples/on_device/agent.c build/learner.c -lm -o build/act
 *     build/act
 *
 * Where the agent goes where the sign said, the reward is 1, and -1 otherwise. Printed is its mean over 250 episodes.
 * `make on-device` does all this.
 */
#include <stdio.h>

#include "learner.h"

enum { LENGTH = 5, EPISODES = 4000, SHOWN = 250 };

static learner_state agent; /* all that the device keeps, as large after a year as after a second */
static learner_work work;   /* what a call works in; others may use it between calls */
static uint32_t noise = 1;  /* of the world */

typedef struct {
    int sign, place;
} corridor;

static void see(const corridor *at, float x[2]) {
    x[0] = at->place > 0 ? 0 : at->sign ? 1 : -1;
    x[1] = at->place == LENGTH;
}

/* Whether the episode is over; another one has begun then. */
static bool move(corridor *at, int32_t action, float *reward) {
    *reward = 0;
    if (at->place++ < LENGTH) return false;
    *reward = action == at->sign ? 1 : -1;
    noise = 1664525 * noise + 1013904223;
    at->sign = noise >> 31;
    at->place = 0;
    return true;
}

int main(void) {
    corridor at = {0, 0};
    float x[2], reward;
    int32_t action;
    double sum = 0;

    learner_init(&agent);
    see(&at, x);
    for (int episode = 0; episode < EPISODES;) {
        learner_act(&agent, &work, x, &action);
        bool over = move(&at, action, &reward);
        see(&at, x);
        learner_learn(&agent, &work, &reward, &over, x);
        sum += (double)reward;
        if (over && ++episode % SHOWN == 0) {
            printf("%d %.3f\n", episode, sum / SHOWN);
            sum = 0;
        }
    }
    return 0;
}
