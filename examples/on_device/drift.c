/* A learner that learns: reads a stream of numbers, and prints what it predicts and how wrong that was.
 *
 *     python -m examples.on_device.drift --export build
 *     cc -O2 -std=c99 -Wall -Werror -Ibuild examples/on_device/drift.c build/learner.c -lm -o build/learn
 *     build/learn < build/stream.txt
 *
 * Each line of the stream has the numbers of one input, then those of its target. `make on-device` does all this.
 */
#include <stdio.h>

#include "learner.h"

/* What one call reads: an update after every step, so one input and one target. */
enum { INPUTS = 1, TARGETS = 1 };

static learner_state state; /* all that the device keeps, as large after a year as after a second */
static learner_work work;   /* what a call works in; others may use it between calls */

static int read_numbers(float *numbers, int count) {
    for (int i = 0; i < count; i++)
        if (scanf("%f", &numbers[i]) != 1) return 0;
    return 1;
}

int main(void) {
    float x[INPUTS], target[TARGETS], loss[1];
    double sum = 0;
    long steps = 0;

    learner_init(&state);
    while (read_numbers(x, INPUTS) && read_numbers(target, TARGETS)) {
        learner_update(&state, &work, x, target, loss);
        sum += loss[0];
        if (++steps % 500 == 0) {
            printf("%ld %.6f\n", steps, sum / 500);
            sum = 0;
        }
    }
    return 0;
}
